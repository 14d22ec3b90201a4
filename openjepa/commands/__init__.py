"""One file per command: parse, then call one function of a stage. torch is imported after parsing, by those who need it."""
