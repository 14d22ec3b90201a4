"""Data read with pyarrow, the standard library or the `datasets` library: Parquet files, tars, and data sets on the Hub."""
