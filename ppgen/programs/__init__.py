"""What every engine knows of a Pyro program: its sites, its density, its traced graph."""
