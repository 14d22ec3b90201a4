"""openjepa ablate: runs that differ in one thing are trained, evaluated and compared with each other and with published numbers."""
