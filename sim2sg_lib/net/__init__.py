"""The network: images become scene graphs."""
