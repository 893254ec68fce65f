"""What a task's function and a failure are called."""

import functools
from types import FunctionType, MethodType
from typing import Any


def function_names(func: Any) -> tuple[str, str]:
    """Return the name of a span for a function, and the `code.function.name` (`module.qualname`)."""
    try:
        return _names(func.__module__, func.__qualname__) if type(func) is FunctionType else _function_names(func)
    except Exception:  # somebody's property or metaclass
        return _names(None, _class_name(type(func)))


def _function_names(func: Any) -> tuple[str, str]:
    # Real types and real attributes only: a Mock is an instance of whatever it imitates and has every attribute.
    while type(func) is not FunctionType:
        if type(func) is MethodType:
            func = func.__func__
        elif issubclass(type(func), functools.partial):
            func = func.func
        else:
            return _object_names(func)
    return _names(func.__module__, func.__qualname__)


def _object_names(func: object) -> tuple[str, str]:
    try:
        # A class has these, and what functools.wraps, C code and wrapt make.
        qualname = object.__getattribute__(func, "__qualname__")
        module = object.__getattribute__(func, "__module__")
    except AttributeError:
        qualname = module = None
    if type(qualname) is not str:
        qualname, module = type(func).__qualname__, type(func).__module__
    return _names(module, qualname)


# The names alone, no function: a local one is another on every request, under the same name.
@functools.lru_cache(maxsize=1024)
def _names(module: str | None, qualname: str) -> tuple[str, str]:
    return f"background_task {qualname.rpartition('<locals>.')[2]}", _with_module(module, qualname)


def _with_module(module: str | None, qualname: str) -> str:
    return f"{module}.{qualname}" if module else qualname


def error_type(error: BaseException) -> str:
    """Return the `error.type` of an exception: its class, with the module unless that is `builtins`."""
    cls = type(error)
    try:
        return cls.__qualname__ if cls.__module__ == "builtins" else _with_module(cls.__module__, cls.__qualname__)
    except Exception:  # somebody's metaclass
        return _class_name(cls)


def _class_name(cls: Any) -> str:
    return str(type.__getattribute__(cls, "__name__"))
