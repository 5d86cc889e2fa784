"""What reads the goals of saved policies, from the description and the numbers saved with them."""

from typing import Any, TypeAlias

from torch import Tensor

from torch_crl.goals.pictures import PictureReader
from torch_crl.goals.sentences import Reader

AnyReader: TypeAlias = Reader | PictureReader


def rebuild_reader(description: dict[str, Any], tensors: dict[str, Tensor]) -> AnyReader:
    """The reader of a policy. Raises ValueError if these are not those of one."""
    kind = PictureReader if description.get("kind") == "pictures" else Reader
    return kind.rebuild(description, tensors)
