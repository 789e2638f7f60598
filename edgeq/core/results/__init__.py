"""The frozen results that the steps hand to each other."""
