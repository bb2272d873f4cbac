"""The networks, and weights for them."""

# The whole table first: importing timm brings it in (see registration), which must not happen inside a module it needs.
from t2t_vit.models import variants as variants
