"""Files made to do harm: what each special case is, byte by byte. See mutate.py."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import torch

MARKER = "payload-ran"

ONNX_ATTACKS: dict[str, Callable[[], onnx.ModelProto]] = {}
PT2_ATTACKS: dict[str, Callable[[bytes], bytes]] = {}

F = onnx.TensorProto.FLOAT


def _onnx(f: Callable[[], Any]) -> Callable[[], Any]:
    ONNX_ATTACKS[f.__name__] = f
    return f


def _pt2(f: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    PT2_ATTACKS[f.__name__] = f
    return f


def _net(nodes: list[onnx.NodeProto], weights: list[Any] | None = None, **more: Any) -> onnx.ModelProto:
    """x:[2,3,4,4] -> conv -> the nodes (``h`` to ``y``)."""
    rng = np.random.default_rng(0)
    first = oh.make_node("Conv", ["x", "w"], ["h"], name="conv")
    inits = [nh.from_array(rng.standard_normal((4, 3, 1, 1)).astype(np.float32), "w"), *(weights or [])]
    graph = oh.make_graph(
        [first, *nodes],
        "attack",
        [oh.make_tensor_value_info("x", F, [2, 3, 4, 4])],
        [oh.make_tensor_value_info("y", F, None)],
        inits,
    )
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8, **more)


def _ints(name: str, *values: int) -> Any:
    return nh.from_array(np.asarray(values, np.int64), name)


def _tensor(name: str, dims: list[int], **external: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=F, dims=dims)
    if external:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in external.items():
            tensor.external_data.add(key=key, value=value)
    return tensor


def _outside(**external: str) -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "e"], ["y"])], [_tensor("e", [4, 4], **external)])


for _name, _where in {
    "external_up": dict(location="../secret"),
    "external_absolute": dict(location="/etc/hostname"),
    "external_link": dict(location="link"),
    "external_missing": dict(location="nowhere"),
    "external_device": dict(location="/dev/zero"),
    "external_empty": dict(location=""),
    "external_folder": dict(location="."),
    "external_nul": dict(location="a\0b"),
    "external_offset": dict(location="beside", offset="99999999999999999999"),
    "external_negative_offset": dict(location="beside", offset="-4"),
    "external_length": dict(location="beside", length="9223372036854775807"),
    "external_negative_length": dict(location="beside", length="-1"),
    "external_text_offset": dict(location="beside", offset="four"),
    "external_no_location": dict(offset="0"),
}.items():
    ONNX_ATTACKS[_name] = lambda where=_where: _outside(**where)  # type: ignore[misc]


@_onnx
def external_attribute() -> onnx.ModelProto:
    return _net(
        [
            oh.make_node("Constant", [], ["e"], value=_tensor("e", [4, 4], location="../secret")),
            oh.make_node("Add", ["h", "e"], ["y"]),
        ]
    )


@_onnx
def huge_dims_without_data() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "e"], ["y"])], [_tensor("e", [2**40])])


@_onnx
def negative_dims() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "e"], ["y"])], [_tensor("e", [-4])])


@_onnx
def dims_that_overflow() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "e"], ["y"])], [_tensor("e", [2**32, 2**32])])


@_onnx
def cycle() -> onnx.ModelProto:
    return _net(
        [oh.make_node("Add", ["h", "b"], ["a"]), oh.make_node("Relu", ["a"], ["b"]), oh.make_node("Relu", ["b"], ["y"])]
    )


@_onnx
def reads_itself() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "y"], ["y"])])


@_onnx
def two_of_one_name() -> onnx.ModelProto:
    return _net([oh.make_node("Relu", ["h"], ["y"]), oh.make_node("Abs", ["h"], ["y"])])


@_onnx
def dangling_input() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "nobody"], ["y"])])


@_onnx
def output_of_nothing() -> onnx.ModelProto:
    return _net([oh.make_node("Relu", ["h"], ["z"])])


@_onnx
def allocates_with_constant_of_shape() -> onnx.ModelProto:
    nodes = [
        oh.make_node("ConstantOfShape", ["n"], ["c"]),
        oh.make_node("ReduceSum", ["c"], ["s"]),
        oh.make_node("Add", ["h", "s"], ["y"]),
    ]
    return _net(nodes, [_ints("n", 2**20, 2**20)])


@_onnx
def allocates_with_expand() -> onnx.ModelProto:
    return _net([oh.make_node("Expand", ["h", "n"], ["y"])], [_ints("n", 2**16, 2, 4, 2**9, 2**9)])


@_onnx
def allocates_with_tile() -> onnx.ModelProto:
    return _net([oh.make_node("Tile", ["h", "n"], ["y"])], [_ints("n", 2**13, 2**13, 2**6, 1)])


@_onnx
def allocates_with_pad() -> onnx.ModelProto:
    return _net([oh.make_node("Pad", ["h", "n"], ["y"])], [_ints("n", 0, 0, 2**20, 2**20, 0, 0, 0, 0)])


@_onnx
def allocates_with_range() -> onnx.ModelProto:
    nodes = [
        oh.make_node("Range", ["a", "b", "c"], ["r"]),
        oh.make_node("Cast", ["r"], ["f"], to=F),
        oh.make_node("ReduceSum", ["f"], ["s"]),
        oh.make_node("Add", ["h", "s"], ["y"]),
    ]
    return _net(nodes, [nh.from_array(np.asarray(n, np.int64), name) for name, n in (("a", 0), ("b", 2**40), ("c", 1))])


@_onnx
def allocates_with_resize() -> onnx.ModelProto:
    scales = nh.from_array(np.asarray([1, 1, 2**18, 2**18], np.float32), "s")
    return _net([oh.make_node("Resize", ["h", "", "s"], ["y"])], [scales])


@_onnx
def allocates_in_the_input() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40
    return model


@_onnx
def doubles_sixty_times() -> onnx.ModelProto:
    names = ["h", *(f"d{k}" for k in range(60)), "y"]
    return _net([oh.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)])


def _loop(trips: int, body: list[onnx.NodeProto], weights: list[Any] | None = None) -> onnx.ModelProto:
    carried = oh.make_tensor_value_info("c_in", F, None)
    graph = oh.make_graph(
        [oh.make_node("Identity", ["on_in"], ["on_out"]), *body],
        "body",
        [
            oh.make_tensor_value_info("k", onnx.TensorProto.INT64, []),
            oh.make_tensor_value_info("on_in", onnx.TensorProto.BOOL, []),
            carried,
        ],
        [oh.make_tensor_value_info("on_out", onnx.TensorProto.BOOL, []), oh.make_tensor_value_info("c_out", F, None)],
    )
    trip = nh.from_array(np.asarray(trips, np.int64), "trips")
    on = nh.from_array(np.asarray(True), "on")
    return _net([oh.make_node("Loop", ["trips", "on", "h"], ["y"], body=graph)], [trip, on, *(weights or [])])


@_onnx
def loops_for_ever() -> onnx.ModelProto:
    return _loop(2**62, [oh.make_node("Tanh", ["c_in"], ["c_out"])])


@_onnx
def loops_and_doubles() -> onnx.ModelProto:
    return _loop(60, [oh.make_node("Concat", ["c_in", "c_in"], ["c_out"], axis=0)])


@_onnx
def function_that_calls_itself() -> onnx.ModelProto:
    f = oh.make_function(
        "evil",
        "F",
        ["a"],
        ["b"],
        [oh.make_node("F", ["a"], ["b"], domain="evil")],
        [oh.make_opsetid("", 17), oh.make_opsetid("evil", 1)],
    )
    model = _net([oh.make_node("F", ["h"], ["y"], domain="evil")], functions=[f])
    model.opset_import.append(oh.make_opsetid("evil", 1))
    return model


@_onnx
def functions_that_call_each_other() -> onnx.ModelProto:
    ids = [oh.make_opsetid("", 17), oh.make_opsetid("evil", 1)]
    functions = [
        oh.make_function("evil", a, ["a"], ["b"], [oh.make_node(b, ["a"], ["b"], domain="evil")], ids)
        for a, b in (("F", "G"), ("G", "F"))
    ]
    model = _net([oh.make_node("F", ["h"], ["y"], domain="evil")], functions=functions)
    model.opset_import.append(oh.make_opsetid("evil", 1))
    return model


@_onnx
def functions_that_double() -> onnx.ModelProto:
    """Each calls the next twice: 2**40 ops when inlined."""
    ids = [oh.make_opsetid("", 17), oh.make_opsetid("evil", 1)]
    functions = []
    for k in range(40):
        op = dict(domain="evil") if k < 39 else {}
        name = f"F{k + 1}" if k < 39 else "Relu"
        nodes = [oh.make_node(name, ["a"], ["m"], **op), oh.make_node(name, ["m"], ["b"], **op)]
        functions.append(oh.make_function("evil", f"F{k}", ["a"], ["b"], nodes, ids))
    model = _net([oh.make_node("F0", ["h"], ["y"], domain="evil")], functions=functions)
    model.opset_import.append(oh.make_opsetid("evil", 1))
    return model


@_onnx
def subgraphs_in_subgraphs() -> onnx.ModelProto:
    node = oh.make_node("Relu", ["h"], ["y"])
    for depth in range(30):
        out = [oh.make_tensor_value_info(node.output[0], F, None)]
        graph = oh.make_graph([node], f"g{depth}", [], out)
        name = "y" if depth == 29 else f"y{depth}"
        node = oh.make_node(
            "If",
            ["yes"],
            [name],
            then_branch=graph,
            else_branch=graph
            if depth < 2
            else oh.make_graph(
                [oh.make_node("Abs", ["h"], [f"z{depth}"])], "e", [], [oh.make_tensor_value_info(f"z{depth}", F, None)]
            ),
        )
    return _net([node], [nh.from_array(np.asarray(True), "yes")])


@_onnx
def nan_weight() -> onnx.ModelProto:
    return _net([oh.make_node("Add", ["h", "e"], ["y"])], [nh.from_array(np.full(4, np.nan, np.float32), "e")])


@_onnx
def opset_of_the_future() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    model.opset_import[0].version = 9999
    return model


@_onnx
def opset_negative() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    model.opset_import[0].version = -3
    return model


@_onnx
def no_opset() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    del model.opset_import[:]
    return model


@_onnx
def ir_version_of_the_future() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    model.ir_version = 2**62
    return model


@_onnx
def unknown_domain() -> onnx.ModelProto:
    return _net([oh.make_node("Thing", ["h"], ["y"], domain="who.knows")])


@_onnx
def strings() -> onnx.ModelProto:
    no_text: Any = [b"\xff\xfe"]
    text = oh.make_tensor("s", onnx.TensorProto.STRING, [1], no_text)
    return _net([oh.make_node("Relu", ["h"], ["y"])], [text])


@_onnx
def names_that_are_paths() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["../../../tmp/y"])])
    model.graph.output[0].name = "../../../tmp/y"
    return model


@_onnx
def long_name() -> onnx.ModelProto:
    return _net([oh.make_node("Relu", ["h"], ["y"], name="n" * 2**20)])


@_onnx
def no_names() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    for node in model.graph.node:
        node.name = ""
    model.graph.initializer[0].name = ""
    return model


@_onnx
def axes_out_of_range() -> onnx.ModelProto:
    return _net([oh.make_node("Concat", ["h", "h"], ["y"], axis=-9)])


@_onnx
def conv_groups_zero() -> onnx.ModelProto:
    model = _net([oh.make_node("Relu", ["h"], ["y"])])
    model.graph.node[0].attribute.append(oh.make_attribute("group", 0))
    return model


@_onnx
def split_into_nothing() -> onnx.ModelProto:
    return _net([oh.make_node("Split", ["h", "n"], ["y", "z"], axis=1)], [_ints("n", 4, 0)])


@_onnx
def empty_file() -> bytes:
    return b""


@_onnx
def text_file() -> bytes:
    return b"this is not a model\n" * 50


# ---- .pt2 --------------------------------------------------------------------------------------------


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, (CODE,)


CODE = f"open({MARKER!r}, 'w').write('ran')"


def _members(file: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zip(members: dict[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return out.getvalue()


def _find(members: dict[str, bytes], end: str) -> str:
    return next(name for name in members if name.endswith(end))


def _pickled() -> bytes:
    out = io.BytesIO()
    torch.save(Payload(), out)
    return out.getvalue()


def _with(file: bytes, end: str, content: bytes) -> bytes:
    members = _members(file)
    members[_find(members, end)] = content
    return _zip(members)


def _edited(file: bytes, end: str, edit: Callable[[Any], Any]) -> bytes:
    members = _members(file)
    name = _find(members, end)
    made = json.loads(members[name])
    members[name] = json.dumps(edit(made) or made).encode()
    return _zip(members)


def _added(file: bytes, path: str, content: bytes) -> bytes:
    members = _members(file)
    root = next(iter(members)).partition("/")[0]
    return _zip({**members, f"{root}/{path}": content})


@_pt2
def pickle_in_sample_inputs(file: bytes) -> bytes:
    return _with(file, "sample_inputs/model.pt", _pickled())


@_pt2
def bare_pickle_in_sample_inputs(file: bytes) -> bytes:
    return _with(file, "sample_inputs/model.pt", pickle.dumps(Payload(), 2))


@_pt2
def pickle_in_second_sample_inputs(file: bytes) -> bytes:
    """Of two members of one name, readers differ in which they take."""
    members = list(_members(file).items())
    name = _find(dict(members), "sample_inputs/model.pt")
    return _zip([(name, _pickled()), *members])


@_pt2
def pickle_under_a_name_in_capitals(file: bytes) -> bytes:
    members = list(_members(file).items())
    name = _find(dict(members), "sample_inputs/model.pt")
    return _zip([(name.replace("sample_inputs", "Sample_Inputs"), _pickled()), *members])


@_pt2
def pickled_weight(file: bytes) -> bytes:
    def edit(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    return _edited(_with(file, "weights/weight_0", _pickled()), "model_weights_config.json", edit)


@_pt2
def legacy_weights(file: bytes) -> bytes:
    return _added(file, "data/weights/model.pt", _pickled())


@_pt2
def legacy_constants(file: bytes) -> bytes:
    return _added(file, "data/constants/model.pt", _pickled())


@_pt2
def legacy_program(file: bytes) -> bytes:
    members = _members(file)
    return _zip(
        {
            "version": b"8.18",
            "serialized_exported_program.json": members[_find(members, "models/model.json")],
            **{f"serialized_{part}.pt": _pickled() for part in ("state_dict", "constants", "example_inputs")},
        }
    )


def _constant(prefix: str, content: bytes, use_pickle: bool) -> Callable[[bytes], bytes]:
    def attack(file: bytes) -> bytes:
        members = _members(file)
        meta = next(iter(json.loads(members[_find(members, "model_weights_config.json")])["config"].values()))[
            "tensor_meta"
        ]
        entry = {"path_name": f"{prefix}0", "is_param": False, "use_pickle": use_pickle, "tensor_meta": meta}
        made = _added(file, f"data/constants/{prefix}0", content)
        return _edited(made, "model_constants_config.json", lambda config: config["config"].update(evil=entry))

    return attack


PT2_ATTACKS["pickled_opaque_constant"] = _constant("opaque_obj_", pickle.dumps(Payload()), True)
PT2_ATTACKS["pickled_opaque_constant_that_denies_it"] = _constant(
    "opaque_obj_", pickle.dumps(Payload()) + bytes(2), False
)
PT2_ATTACKS["pickled_tensor_constant"] = _constant("tensor_", _pickled(), True)
PT2_ATTACKS["script_object_constant"] = _constant("custom_obj_", _pickled(), True)
PT2_ATTACKS["constant_outside_the_archive"] = _constant("../../../../etc/hostname", b"x", False)


def _each(tree: Any, key: str, change: Callable[[Any], Any]) -> None:
    """Change every value under ``key``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for k, value in list(items):
        if k == key and value is not None:
            tree[k] = change(value)
        _each(tree[k], key, change)


def _code(key: str, code: str) -> Callable[[bytes], bytes]:
    return lambda file: _edited(file, "models/model.json", lambda program: _each(program, key, lambda _: code))


for _k, _text in {
    "call": f"eval({CODE!r})",
    "import": f"__import__('os').system('touch {MARKER}')",
    "attribute": f"Integer.__class__.__mro__[-1].__subclasses__() or {CODE}",
}.items():
    PT2_ATTACKS[f"size_that_is_code_{_k}"] = _code("expr_str", _text)
PT2_ATTACKS["size_that_never_ends"] = _code("expr_str", "9**9**9**9")
PT2_ATTACKS["size_nested_deep"] = _code("expr_str", "(" * 5000 + "s0" + ")" * 5000)
PT2_ATTACKS["size_in_a_long_sum"] = _code("expr_str", "+".join(["s0"] * 100000))
PT2_ATTACKS["size_factorial"] = _code("expr_str", "factorial(10**8)")
for _k, _text in {
    "system": "torch.os.system",
    "load": "torch.load",
    "hub": "torch.hub.load",
    "eval": "torch.sys.modules",
    "operator": "_operator.call",
    "from_file": "torch.ops.aten.from_file.default",
}.items():
    PT2_ATTACKS[f"op_that_is_{_k}"] = _code("target", _text)


@_pt2
def argument_name_that_is_code(file: bytes) -> bytes:
    return _edited(
        file,
        "models/model.json",
        lambda program: _each(program, "forward_arg_names", lambda names: [f"x={CODE}"] * max(1, len(names))),
    )


@_pt2
def input_name_that_is_code(file: bytes) -> bytes:
    def edit(program: Any) -> Any:
        text = json.dumps(program)
        name = program["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
        return json.loads(text.replace(json.dumps(name), json.dumps(f"{name}={CODE}")))

    return _edited(file, "models/model.json", edit)


@_pt2
def node_name_that_is_code(file: bytes) -> bytes:
    return _edited(
        file,
        "models/model.json",
        lambda program: _each(
            program["graph_module"]["graph"]["nodes"], "name", lambda name: f"{name}\n    {CODE}\n    "
        ),
    )


@_pt2
def string_that_is_code(file: bytes) -> bytes:
    return _edited(
        file,
        "models/model.json",
        lambda program: _each(
            program, "metadata", lambda _: {"stack_trace": f'"""\n{CODE}\n"""', "nn_module_stack": f"a,{CODE},b"}
        ),
    )


def _spec(spec: Any) -> Callable[[bytes], bytes]:
    def change(program: Any) -> None:
        _each(program, "in_spec", lambda _: json.dumps(spec))
        _each(program, "out_spec", lambda _: json.dumps(spec))

    return lambda file: _edited(file, "models/model.json", change)


_leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_factory = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []})
PT2_ATTACKS["tree_that_imports"] = _spec(
    [1, {"type": "collections.defaultdict", "context": _factory, "children_spec": []}]
)
_enum = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
PT2_ATTACKS["tree_that_imports_an_enum"] = _spec(
    [1, {"type": "builtins.dict", "context": _enum, "children_spec": [_leaf]}]
)


@_pt2
def guards_that_are_code(file: bytes) -> bytes:
    return _edited(file, "models/model.json", lambda program: program.update(guards_code=[CODE]))


@_pt2
def huge_weight_without_data(file: bytes) -> bytes:
    def edit(config: Any) -> None:
        _each(config, "sizes", lambda sizes: [{"as_int": 2**40} for _ in sizes])

    return _edited(_with(file, "weights/weight_0", b""), "model_weights_config.json", edit)


@_pt2
def huge_weight_by_strides(file: bytes) -> bytes:
    def edit(config: Any) -> None:
        _each(config, "sizes", lambda sizes: [{"as_int": 2**20} for _ in sizes])
        _each(config, "strides", lambda strides: [{"as_int": 0} for _ in strides])

    return _edited(file, "model_weights_config.json", edit)


@_pt2
def negative_offset(file: bytes) -> bytes:
    return _edited(
        file, "model_weights_config.json", lambda config: _each(config, "storage_offset", lambda _: {"as_int": -100})
    )


@_pt2
def json_nested_deep(file: bytes) -> bytes:
    return _with(file, "models/model.json", b"[" * 200000 + b"]" * 200000)


@_pt2
def zip_bomb(file: bytes) -> bytes:
    members, out = _members(file), io.BytesIO()
    name = _find(members, "models/model.json")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content if member != name else b" " * 2**26 + content)
    return out.getvalue()


@_pt2
def member_outside(file: bytes) -> bytes:
    return _zip({**_members(file), "../../outside": b"x", "/tmp/outside": b"x"})


@_pt2
def many_members(file: bytes) -> bytes:
    members = _members(file)
    root = next(iter(members)).partition("/")[0]
    return _zip({**members, **{f"{root}/extra/{k}": b"x" for k in range(20000)}})


@_pt2
def two_archives_in_one(file: bytes) -> bytes:
    return pickle_in_sample_inputs(file) + file


@_pt2
def not_a_zip(file: bytes) -> bytes:
    return pickle.dumps(Payload())


@_pt2
def a_torch_save_file(file: bytes) -> bytes:
    return _pickled()
