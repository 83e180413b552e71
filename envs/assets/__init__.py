"""Procedural assets of the environments: unit meshes of parts, sized in metres, x ahead."""
