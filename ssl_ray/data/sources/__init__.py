"""One file for each kind of image source."""
