"""Parts of `mosaic`: where tiles are expected, what they show, which are bad, how they fit."""
