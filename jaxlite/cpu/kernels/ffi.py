"""A Python function as an operation of a compiled CPU program, by ctypes: no compiler is needed.

XLA calls a target with a frame of pointers; the layout below is that of XLA's C interface, whose major version the
handler gives back when XLA asks for its metadata. A target lives as long as the process: a program that was compiled,
or found in a cache, holds its name.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import jax

_METADATA = 1  # the extension by which XLA asks for a handler's version
_EXECUTE = 3
_INTERNAL = 13
_kept: dict[str, Any] = {}
_lock = threading.Lock()


class _Extension(ctypes.Structure):
  _fields_ = (('size', ctypes.c_size_t), ('type', ctypes.c_int), ('next', ctypes.c_void_p))


class _Version(ctypes.Structure):
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.c_void_p),
    ('major', ctypes.c_int),
    ('minor', ctypes.c_int),
  )


class _Metadata(ctypes.Structure):
  _fields_ = (('size', ctypes.c_size_t), ('version', _Version), ('traits', ctypes.c_uint32))


class _MetadataExtension(ctypes.Structure):
  _fields_ = (('base', _Extension), ('metadata', ctypes.POINTER(_Metadata)))


class _ErrorArgs(ctypes.Structure):
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.c_void_p),
    ('message', ctypes.c_char_p),
    ('code', ctypes.c_int),
  )


_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArgs))


class _Api(ctypes.Structure):  # only as far as it is used
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.c_void_p),
    ('version', _Version),
    ('internal', ctypes.c_void_p),
    ('create_error', _CreateError),
  )


class _Buffer(ctypes.Structure):
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.c_void_p),
    ('dtype', ctypes.c_int),
    ('data', ctypes.c_void_p),
  )


class _Buffers(ctypes.Structure):
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.c_void_p),
    ('count', ctypes.c_int64),
    ('types', ctypes.c_void_p),
    ('items', ctypes.POINTER(ctypes.POINTER(_Buffer))),
  )


class _Frame(ctypes.Structure):
  _fields_ = (
    ('size', ctypes.c_size_t),
    ('extensions', ctypes.POINTER(_Extension)),
    ('api', ctypes.POINTER(_Api)),
    ('context', ctypes.c_void_p),
    ('stage', ctypes.c_int),
    ('args', _Buffers),
    ('rets', _Buffers),
  )


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))


def register(name: str, fn: Callable[..., None]) -> None:
  """Makes a function a target for `jax.ffi.ffi_call` on CPU.

  Args:
    name: of the target. It stands in compiled programs, also in those of a cache on disk: another meaning needs
      another name. A name that is registered already stays as it is.
    fn: (address of each operand..., address of each result...) -> None. Called on threads of XLA, perhaps on several
      at once. What it raises becomes an error of the program.

  >>> import numpy as np
  >>> def double(operand, result):
  ...   read, write = (np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), (2,))
  ...                  for at in (operand, result))
  ...   np.multiply(read, 2, out=write)
  >>> register('jaxlite_example_double', double)
  >>> call = jax.ffi.ffi_call('jaxlite_example_double', jax.ShapeDtypeStruct((2,), np.float32))
  >>> jax.jit(call)(np.float32([1, 3])).tolist()
  [2.0, 6.0]
  """

  @_Handler
  def handler(pointer: Any) -> int | None:
    frame = pointer.contents
    if frame.extensions and frame.extensions.contents.type == _METADATA:
      extension = ctypes.cast(frame.extensions, ctypes.POINTER(_MetadataExtension)).contents
      metadata = extension.metadata.contents
      metadata.version.major, metadata.version.minor = 0, 1
      metadata.traits = 0
      return None
    if frame.stage != _EXECUTE:
      return None
    try:
      args = [frame.args.items[index].contents.data for index in range(frame.args.count)]
      fn(*args, *(frame.rets.items[index].contents.data for index in range(frame.rets.count)))
    except BaseException as error:  # nothing may leave through C, and a result that was not written is no result
      message = f'{name}: {type(error).__name__}: {error}'.encode()
      return frame.api.contents.create_error(_ErrorArgs(ctypes.sizeof(_ErrorArgs), None, message, _INTERNAL))
    return None

  register_address(name, handler)


def register_address(name: str, handler: Any) -> None:
  """Makes a function with XLA's own calling convention a target.

  Args:
    name: as for `register`.
    handler: a ctypes function, or a c_void_p to machine code that stays loaded.
  """
  with _lock:
    if name not in _kept:
      jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform='cpu')
      _kept[name] = handler
