"""Two objects become an image and its exact scene graph: prints the graph, draws both in hello_scene.png."""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from envs.clevr import ENV
from sim2sg_lib.scene import Light, Material, Scene, SceneObject, Sky
from sim2sg_lib.viz.drawings import save_overlay

cube = SceneObject(0, "cube", (-1.0, -1.0, 0.0), (1.4, 1.4, 1.4), 0.4, Material((0.6, 0.05, 0.05)))
sphere = SceneObject(1, "sphere", (2.0, -0.2, 0.0), (1.4, 1.4, 1.4), 0.0, Material((0.1, 0.2, 0.7), 1.0))
scene = Scene((cube, sphere), ENV.world.camera, lights=(Light((1.0, -5.0, 6.0), (45.0, 45.0, 45.0)),),
              sky=Sky((0.35, 0.35, 0.35), (0.35, 0.35, 0.35)), ground=Material((0.45, 0.45, 0.45)))
rendered = ENV.render(ENV, [scene], ["hello"], (640, 480), torch.device("cpu"), "own")
graph = rendered.graphs[0]
names = [ENV.vocabulary.categories[label] for label in graph.labels]
print("\n".join(f"{names[s]} {ENV.vocabulary.predicates[p]} {names[o]}" for s, p, o in graph.relations))
save_overlay(Path("hello_scene.png"), rendered.images[0], graph, ENV.vocabulary)
