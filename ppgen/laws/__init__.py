"""The laws that every model keeps, tried on one."""
