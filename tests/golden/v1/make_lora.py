"""Make lora.json: which LoRA acts in upstream's pipeline after each of a few choices.

    python tests/golden/v1/make_lora.py --checkout PATH

PATH is a checkout of ace-step/ACE-Step at commit d612523. The method ``load_lora`` of acestep/pipeline_ace_step.py is
run alone, unmodified, on a stand-in for the pipeline whose transformer notes what is loaded into it.
"""

import argparse
import ast
import json
import os
import types
from pathlib import Path

CHOICES = [
    ("rap", 1.0),
    ("rap", 1.0),
    ("none", 1.0),
    ("rap", 1.0),
    ("rap", 0.5),
    ("choir", 0.5),
    ("none", 0.5),
    ("choir", 0.5),
    ("rap", 0.5),
]


class Transformer:
    acting = None

    def load_lora_adapter(self, file, **_):
        assert os.path.basename(file) == "pytorch_lora_weights.safetensors"
        self.acting = [os.path.basename(os.path.dirname(file)), 1.0]

    def unload_lora(self):
        self.acting = None


def weigh(transformer, names, weights):
    transformer.acting[1] = weights[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True)
    source = (parser.parse_args().checkout / "acestep/pipeline_ace_step.py").read_text("utf-8")
    (method,) = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == "load_lora")
    names = {
        "os": os,
        "snapshot_download": lambda name, **_: f"downloaded/{name}",
        "set_weights_and_activate_adapters": weigh,
        "logger": types.SimpleNamespace(info=lambda text: None),
    }
    exec(compile(ast.Module([method], []), "load_lora", "exec"), names)
    transformer = Transformer()
    pipe = types.SimpleNamespace(lora_path="none", lora_weight=1, checkpoint_dir=None, ace_step_transformer=transformer)
    trace = []
    for name, weight in CHOICES:
        names["load_lora"](pipe, name, weight)
        trace.append({"chosen": [name, weight], "acts": transformer.acting and list(transformer.acting)})
    lines = ",\n".join(f" {json.dumps(step)}" for step in trace)
    Path(__file__).with_name("lora.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
