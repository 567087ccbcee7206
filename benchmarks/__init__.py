"""What depends on the machine that it is measured on."""
