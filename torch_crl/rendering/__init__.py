"""Pictures and videos of tasks: a stage with light and floor, a camera, and goals drawn in."""
