"""An actor as an ONNX graph, written node by node.

Opset 17 is the first with LayerNormalization; with IR version 8 ONNX Runtime 1.12 and newer read
it. The number of rows is a symbol, so any number works.
"""

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_crl.deploy.actor import ExportedActor, Floats
from torch_crl.errors import UsageError
from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower import BLOCK
from torch_crl.system.extras import install

if TYPE_CHECKING:
    import onnx

_OPSET, _IR = 17, 8
_LARGEST = 2**31 - 2**20
"""Bytes that protobuf can hold, less what the graph itself takes."""


class _Graph:
    """Nodes and constants, each with a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._numbers = count()

    def constant(self, name: str, value: Floats) -> str:
        """The name of a constant, which is added unless there is one of that name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """The name of a new node's output."""
        from onnx import helper

        output = output or f"{kind.lower()}_{next(self._numbers)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output


def model_of(
    actor: ExportedActor, metadata: dict[str, str], *, single_input: bool
) -> "onnx.ModelProto":
    """The model with inputs `state` and `goal` and the output `action`.

    With `single_input` they are `obs`, which is concat(state, goal), and `actions`. A chunk of H
    actions is [rows, H, A]. Raises UsageError if onnx is missing or the weights take 2 GB.
    """
    try:
        from onnx import TensorProto, checker, helper
    except ImportError:
        raise UsageError(f"--to onnx needs onnx: {install('export')}") from None
    size = sum(tensor.nbytes for tensor in actor.tensors.values())
    if size > _LARGEST:
        raise UsageError(
            f"the weights take {size / 1e9:.1f} GB, and a file of ONNX holds 2; export to numpy "
            "or c, or distil the policy into a smaller one"
        )
    graph = _Graph()
    inputs = {"obs": actor.state_size + actor.goal_size}
    x = "obs"
    if not single_input:
        inputs = {"state": actor.state_size, "goal": actor.goal_size}
        x = graph.node("Concat", *inputs, axis=-1)
    output = "actions" if single_input else "action"
    _layers(graph, actor, x, output)
    chunk = [actor.chunk] if actor.chunk > 1 else []
    shapes: dict[str, list[str | int]] = {name: ["rows", length] for name, length in inputs.items()}
    made = helper.make_graph(
        graph.nodes,
        "policy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [
            helper.make_tensor_value_info(
                output, TensorProto.FLOAT, ["rows", *chunk, actor.action_size]
            )
        ],
        list(graph.constants.values()),
    )
    model = helper.make_model(
        made,
        producer_name="torch_crl",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
    )
    helper.set_model_props(model, metadata)
    checker.check_model(model)
    return model


def _layers(graph: _Graph, actor: ExportedActor, x: str, output: str) -> None:
    tensors = actor.tensors
    names = ("weight", "bias", "ln_weight", "ln_bias")
    pre_norm = actor.block == "pre_norm"
    dense, norm = _constants(graph, "input", actor.first_layer)
    x = graph.node("Gemm", x, *dense, transB=1)
    if not pre_norm:
        x = _activated(graph, actor, _normalised(graph, x, norm))
    own = len(tensors["weight"])
    for start in range(0, actor.depth, BLOCK):
        inner = x
        for k in range(start, start + BLOCK):
            of_layer = [tensors[name][k % own] for name in names]
            of_dense, of_norm = _constants(graph, f"layer_{k % own}", of_layer)
            if pre_norm:
                inner = inner if k == start else _activated(graph, actor, inner)
                inner = graph.node("Gemm", _normalised(graph, inner, of_norm), *of_dense, transB=1)
            else:
                inner = graph.node("Gemm", inner, *of_dense, transB=1)
                inner = _activated(graph, actor, _normalised(graph, inner, of_norm))
        if actor.branch_scale != 1.0:
            scale = np.array(actor.branch_scale, np.float32)
            inner = graph.node("Mul", inner, graph.constant("branch_scale", scale))
        x = graph.node("Add", x, inner)
    if pre_norm:
        x = _normalised(graph, x, norm)
    weight, bias = (
        graph.constant(f"output_{name}", tensors[f"output_{name}"]) for name in names[:2]
    )
    y = graph.node("Gemm", x, weight, bias, transB=1)
    if actor.chunk > 1:
        shape = np.array([-1, actor.chunk, actor.action_size], np.int64)
        y = graph.node("Reshape", y, graph.constant("chunk", shape))  # type: ignore[arg-type]
    if actor.head == "tanh":
        graph.node("Tanh", y, output=output)
        return
    low, high = (
        graph.constant(name, np.array(value, np.float32))
        for name, value in (("low", -1.0), ("high", 1.0))
    )
    graph.node("Clip", y, low, high, output=output)


def _constants(
    graph: _Graph, name: str, parameters: Sequence[Floats]
) -> tuple[Sequence[str], Sequence[str]]:
    """The names of weight and bias, and of the LayerNorm's."""
    parts = ("weight", "bias", "ln_weight", "ln_bias")
    named = [
        graph.constant(f"{name}.{part}", value)
        for part, value in zip(parts, parameters, strict=True)
    ]
    return named[:2], named[2:]


def _normalised(graph: _Graph, x: str, norm: Sequence[str]) -> str:
    return graph.node("LayerNormalization", x, *norm, axis=-1, epsilon=EPSILON)


def _activated(graph: _Graph, actor: ExportedActor, x: str) -> str:
    if actor.activation == "relu":
        return graph.node("Relu", x)
    return graph.node("Mul", x, graph.node("Sigmoid", x))
