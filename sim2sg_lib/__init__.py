"""Sim2SG: real-to-sim-to-real scene-graph generation, one stage a file.

    target images --> predict --> SceneGraph --> lift --> Scene --> build --> Meshes --> render --> image
                         ^        2-D boxes,              3-D objects,                    Fragments
                         |        relations               camera, light                      | annotate
                         +------------------ train <---------- SceneGraph (exact labels) <---+

`SceneGraph` is both what the network predicts and what the renderer labels: the circle closes on one type.
Modules import one another in one direction only: graph, camera, scene, meshes, env, assets, lift, raster,
raster_pytorch3d, refine, texture, light, render, labels, kitti, metrics, kitti_eval, dataset, export, detector, relations,
align, checkpoint, picture, report.
"""
