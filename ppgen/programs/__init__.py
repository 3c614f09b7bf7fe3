"""The common part of all engines that deals with a Pyro program: its sites, its density, its traced graph."""
