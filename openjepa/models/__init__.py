"""Networks, without anything about their training."""
