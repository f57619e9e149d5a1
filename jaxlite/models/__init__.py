"""Small reference networks in Flax Linen, each with its size, its work and its source.

They take images [B, H, W, C] or [B, H, W] (`MLP` and `LeNet300`: any [B, ...], flattened), of any dtype and of
about unit scale, and return logits, float32[B, classes]. `EmbeddingBag` and `Decoder` take token ids, int[B, T], or
{'tokens': int[B, T], 'mask': bool[B, T]}; a Decoder returns logits of the next token at every position, float32[B, T,
vocabulary], which `generate` turns into text.
"""

# ruff: noqa: E402 - a missing Flax is told before anything here imports it
from jaxlite import errors

errors.need('jaxlite.models', 'flax')

from jaxlite.models.bert import Bert
from jaxlite.models.cached_generation import Generated, generate_cached
from jaxlite.models.cnn import SmallCNN
from jaxlite.models.decoder import Decoder
from jaxlite.models.depthwise import DepthwiseCNN
from jaxlite.models.efficientnet import (
  EfficientNetLite,
  EfficientNetLite0,
  EfficientNetLite1,
  EfficientNetLite2,
  EfficientNetLite3,
  EfficientNetLite4,
)
from jaxlite.models.embedding_bag import EmbeddingBag
from jaxlite.models.generation import generate
from jaxlite.models.layers import max_pool
from jaxlite.models.lenet import LeNet5
from jaxlite.models.mlp import MLP, LeNet300
from jaxlite.models.mobilenet import MobileNetV2
from jaxlite.models.published_weights import Published, published
from jaxlite.models.resnet import ResNet, ResNet8, ResNet20
from jaxlite.models.resnet_photographs import DeepResNet, ResNet18, ResNet34, ResNet50
from jaxlite.models.sizes import Summary, summary
from jaxlite.models.text_configs import text_module
from jaxlite.models.text_weights import TextNetwork, text_network
from jaxlite.models.vit import ViT, ViTSmall

__all__ = [
  'MLP',
  'Bert',
  'Decoder',
  'DeepResNet',
  'DepthwiseCNN',
  'EfficientNetLite',
  'EfficientNetLite0',
  'EfficientNetLite1',
  'EfficientNetLite2',
  'EfficientNetLite3',
  'EfficientNetLite4',
  'EmbeddingBag',
  'Generated',
  'LeNet5',
  'LeNet300',
  'MobileNetV2',
  'Published',
  'ResNet',
  'ResNet8',
  'ResNet18',
  'ResNet20',
  'ResNet34',
  'ResNet50',
  'SmallCNN',
  'Summary',
  'TextNetwork',
  'ViT',
  'ViTSmall',
  'generate',
  'generate_cached',
  'max_pool',
  'published',
  'summary',
  'text_module',
  'text_network',
]
