"""openjepa ablate: runs that differ in one thing are trained, evaluated and compared, also with published numbers."""
