"""openjepa embed: features of all images of a data set as one file, written part by part by any number of processes."""
