"""The commands around runs: compare them, time a step or the data, plan, launch and list runs."""
