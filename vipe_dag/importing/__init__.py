"""Readers of other programs' results, which become assets of a store. An imported generation says so in its attribute `imported`."""
