"""The commands, one file each: parse, then call one function of a stage. torch is imported after parsing, if it is needed."""
