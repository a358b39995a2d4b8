"""Every test runs with the shapes in the annotations checked."""

from jaxtyping import install_import_hook

hook = install_import_hook("nextvid", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
