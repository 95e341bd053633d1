"""The page of `task=demo`, on which a network segments photos."""
