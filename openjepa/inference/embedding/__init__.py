"""openjepa embed: writes the features of a whole data set to one file, part by part, in any number of processes."""
