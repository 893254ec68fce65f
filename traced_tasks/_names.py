"""The names of a task's function and of a failure."""

from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from traced_tasks._engines import engine_task


def qualified_name(func: Any) -> tuple[str | None, str]:
    """Return the module and the qualified name of the function that was meant, whatever it is wrapped in."""
    try:
        # Real types and real attributes only: a Mock is an instance of whatever it imitates and has every attribute.
        while type(func) is not FunctionType:
            if (found := engine_task(func)) is not None:
                func = found[0].function(found[1])
            elif type(func) is MethodType:
                func = func.__func__
            elif issubclass(type(func), partial):
                func = func.func
            else:
                break
        with suppress(AttributeError):
            # A function and a class have these, and what functools.wraps, C code and wrapt make.
            attribute: Any = partial(object.__getattribute__, func)
            qualname, module = attribute("__qualname__"), attribute("__module__")
            if type(qualname) is str:
                return module, qualname
        return type(func).__module__, type(func).__qualname__
    except Exception:  # somebody's property or metaclass
        return None, str(type.__getattribute__(type(func), "__name__"))  # pyright: ignore[reportUnknownArgumentType]


def with_module(module: str | None, qualname: str) -> str:
    """Return a name as `code.function.name` and `error.type` have it."""
    return f"{module}.{qualname}" if module else qualname


def error_type(error: BaseException) -> str:
    """Return the `error.type` of an exception: its class, with the module unless that is `builtins`."""
    cls = type(error)
    try:
        return cls.__qualname__ if cls.__module__ == "builtins" else with_module(cls.__module__, cls.__qualname__)
    except Exception:  # somebody's metaclass
        return str(type.__getattribute__(cls, "__name__"))
