"""Operations of an update, one folder each: the definition in plain torch and faster versions.

Imported as `torch_crl.kernels`. Nothing here knows about networks or environments, and only
`contrastive_update` about losses.
"""

import os

# Products and sums in one instruction, with which all kernels were measured. Triton 3.9 warns if
# this is not said, and later versions take it for no.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
