"""MCGM on Break-A-Scene: the subjects of one picture as handles, with an encoder of their masks."""
