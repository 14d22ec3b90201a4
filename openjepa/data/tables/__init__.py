"""What the `datasets` library reads: Parquet, tars, names on the Hub."""
