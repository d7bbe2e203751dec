"""Exact test worlds: a textured room, a street and a hall, ray-cast with known cameras, depth, flow and moving things.

`scene("room")` gives a clip to iterate, to write as an mp4 and to compare estimates with; everything in it is exact and repeatable.
"""

from vipe_dag.synthetic.clip import SyntheticClip, write_mp4, write_truth
from vipe_dag.synthetic.places import room, street
from vipe_dag.synthetic.render import Picture, render
from vipe_dag.synthetic.scenes import SCENES, camera, scene
from vipe_dag.synthetic.world import World

__all__ = ["SCENES", "Picture", "SyntheticClip", "World", "camera", "render", "room", "scene", "street", "write_mp4", "write_truth"]
