"""Sim2SG: real-to-sim-to-real scene-graph generation (Prakash et al. 2021).

                     envs/<name>.py   what exists: categories, predicates, assets, camera, random scenes
                           | Env
 target images --> predict --> SceneGraph --> lift --> Scene --> build --> Meshes --> render --> image
                      ^        2-D boxes,              3-D objects,                    Fragments
                      |        relations               camera, light                      | annotate
                      +------------------ train <---------- SceneGraph (exact labels) <---+

`SceneGraph` is both what the network predicts and what the renderer labels: the loop closes on one type.

types   the arrows of the diagram: graph, scene, camera, env
        the files between the stages: dataset, checkpoint
sim/    scenes to images: meshes, rasterizer, lighting, shading, labels; boxes to 3-D: lift, fit, look
net/    images to scene graphs: detector, relations, inference and its thresholds
adapt/  losses on unlabeled target images: one table of methods
score/  average precision, recall, content gap; the table of a loop
io/     files: atomic writes, resumption, checks of untrusted files, KITTI, COCO, meshes
viz/    drawings and the HTML report

At module level, each module imports only from modules before it in IMPORT_ORDER. The library never
imports `envs` or a script, and no script imports another.
"""

__version__ = "1.0.0"

IMPORT_ORDER = """
    cli graph camera scene
    io.reading io.files io.folders io.graphs io.images io.cameras
    sim.tensor_ops sim.meshes sim.rasterizer sim.soft
    sim.lighting sim.texture sim.background sim.shading sim.large_images
    env
    sim.pytorch3d sim.annotate sim.render sim.lift sim.fit sim.chunks
    sim.appearance sim.look sim.variety sim.sources sim.explain sim.compare
    score.metrics score.content io.kitti dataset data_loading
    net.backbone net.detector net.relations net.network net.predict
    checkpoint training_state
    adapt.base adapt.sim2sg adapt
    score.kitti_ap score.labeled_set score.table
    io.export io.obj io.glb io.mesh_files
    viz.drawings viz.sheet viz.report
""".split()
