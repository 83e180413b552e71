"""Procedural assets of the environments: unit meshes of parts, sized in meters, x ahead."""
