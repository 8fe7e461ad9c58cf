"""Two codecs for the bits that a decay drops: lazy scales with bit planes, and the rational numbers of 2015."""
