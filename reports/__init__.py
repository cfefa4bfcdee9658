"""SHOW IT: the record of a run, its verdict, and the pages made from it."""
