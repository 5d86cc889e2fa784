"""Operations of an update, one folder each: the definition in plain torch and faster versions.

Imported as `torch_crl.kernels`. Nothing here knows about networks or environments, and only
`contrastive_update` about losses.
"""
