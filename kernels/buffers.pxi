# Addresses of NumPy buffers, for every compiled module; int64_t and uint8_t are those of the including file.

cdef int64_t _address(object array, list held, str name, int64_t nbytes, bint writable) except -1:
    """Return the address of a C-contiguous buffer of exactly `nbytes`; `held` keeps it from moving."""
    cdef const uint8_t[::1] view
    cdef uint8_t[::1] target
    flat = array.reshape(-1).view("u1") if array.dtype.itemsize else array
    if not array.flags.c_contiguous or flat.nbytes != nbytes:
        raise ValueError(f"{name}: expected a contiguous buffer of {nbytes} bytes, got {flat.nbytes}")
    if nbytes < 1:
        raise ValueError(f"{name}: empty buffer")
    held.append(flat)
    if writable:
        target = flat
        return <int64_t><size_t>&target[0]
    view = flat
    return <int64_t><size_t>&view[0]
