"""Pictures and the page of a loop."""
