"""PEFT's configurations of methods."""
