"""Bugs to plant into passes and laws, and the blocks of layers at which they are to show."""
