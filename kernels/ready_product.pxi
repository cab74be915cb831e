# A product as a linear layer calls it. What a call depends on is looked at here as a whole, without interpreted code in
# between: of one token, with the caches full of other layers, that took a third of the time. Included by product.pyx.


cdef const dl_exchange *_exchange_of(tensor) except? NULL:
    """What says where tensors of a class lie, NULL if nothing that we know does."""
    capsule = getattr(tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return NULL
    cdef const dl_exchange *found = <const dl_exchange *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
    return found if found.version.major == DL_MAJOR and found.from_object != NULL else NULL


def reads(tensor):
    """Whether tensors of a class can be read as they lie: torch offers that since 2.10."""
    return _exchange_of(tensor) != NULL


cdef class ReadyProduct:
    """A product with a stored matrix, which holds as long as its layer stays as it was.

    Parameters
    ----------
    torch : what is used of it: Tensor, float32, bfloat16, the device cpu, empty, get_num_threads, is_tracing, the
        number of modes that see every operator, the variables of what carries derivatives forward, and the dicts of
        hooks that every module has. `Tensor.__dlpack_c_exchange_api__` says where a tensor lies.
    weight : the matrix.
    parts : tensors it was made of: packed, scales, zero points.
    bias : tensor (rows,) on the processor, or None.
    inputs : what says how inputs are rounded; the layer must still have the same.
    bits, span : what it says, as `multiply_codes` has it; 0 bits = floats.
    isa : instruction set.
    """

    cdef object tensor, float32, bfloat16, cpu, empty, get_num_threads, is_tracing, n_modes
    cdef const dl_exchange *dlpack
    cdef Matrix weight
    cdef dict forward_ad
    cdef tuple common_hooks, parts
    cdef object bias, inputs
    cdef size_t places[4]
    cdef input_codes form
    cdef bint has_narrow_bias
    cdef const product_set *isa

    def __cinit__(
        self, tuple torch, Matrix weight not None, tuple parts, bias, inputs, int bits, int64_t span, str isa,
    ):
        (
            self.tensor, self.float32, self.bfloat16, self.cpu, self.empty, self.get_num_threads, self.is_tracing,
            self.n_modes, self.forward_ad, self.common_hooks,
        ) = torch
        self.dlpack = _exchange_of(self.tensor)
        if self.dlpack == NULL:
            raise ValueError(f"nothing says where a {self.tensor.__name__} lies")
        self.weight, self.parts, self.bias, self.inputs = weight, parts, bias, inputs
        self.isa = &_sets[_find(isa)]
        self.form.bits = 0
        if bits:
            _describe(&self.form, &weight.job, bits, span)
        packed, scales, zero_points = parts
        for i, part in enumerate((packed, scales, zero_points, bias)):
            self.places[i] = 0 if part is None else part.data_ptr()
        self.has_narrow_bias = False
        if bias is not None:
            self.has_narrow_bias = bias.dtype is self.bfloat16
            if not (self.has_narrow_bias or bias.dtype is self.float32) or not bias.is_cpu or not bias.is_contiguous():
                raise ValueError(f"a bias of {bias.dtype} on {bias.device} cannot be added as it lies")
            if tuple(bias.shape) != (weight.job.rows,):
                raise ValueError(f"a bias of shape {tuple(bias.shape)} does not go with {weight.job.rows} rows")

    cdef bint holds(self, dict layer, dict state) except -1:
        """Whether codes and bias are those that were given, at the same places, and no hook brings others."""
        cdef dict buffers = <dict>state["_buffers"]
        if layer["inputs"] is not self.inputs or (<dict>layer["_parameters"]).get("bias", self) is not self.bias:
            return False  # without a parameter: torch's parametrizations and pruning make one of it that is computed
        if "forward" in state or state["_forward_pre_hooks"]:
            return False
        packed, scales, zero_points = self.parts
        return (
            buffers["packed"] is packed and buffers["scales"] is scales and buffers["zero_points"] is zero_points
            and self.is_at(packed, self.places[0])
            and self.is_at(scales, self.places[1])
            and self.is_at(zero_points, self.places[2])
            and (self.bias is None or self.is_at(self.bias, self.places[3]))
        )

    cdef bint is_at(self, tensor, size_t place) except -1:
        cdef dl_tensor now
        return self.lies(tensor, &now) and <size_t>dl_start(&now) == place

    cdef bint lies(self, tensor, dl_tensor *where) except -1:
        """Whether a tensor lies somewhere, and where; it does not if it is sparse, or stands for others."""
        if self.dlpack.from_object(<void *>tensor, where):
            PyErr_Clear()
            return False
        return True

    cdef bint is_called_as_it_is(self, dict layer) except -1:
        """Whether a call of the layer would do no more than its forward."""
        if "forward" in layer or layer.get("_compiled_call_impl") is not None:
            return False
        if layer["_forward_pre_hooks"] or layer["_forward_hooks"]:
            return False
        if layer["_backward_pre_hooks"] or layer["_backward_hooks"]:
            return False
        for hooks in self.common_hooks:
            if hooks:
                return False
        return True

    cdef int64_t tokens_of(self, x, dl_tensor *where) except -1:
        """Rows of x (..., columns), or 0 if it cannot be read `where` it lies."""
        cdef int64_t tokens = 1, i
        if x.requires_grad or (self.bias is not None and self.bias.requires_grad):
            return 0
        if not self.lies(x, where) or where.device.type != DL_CPU or not dl_is_contiguous(where):
            return 0
        if dl_start(where) == NULL:  # without numbers, such as zeros for which torch takes no memory
            return 0
        if not (dl_is_float32(where) or dl_is_bfloat16(where)):
            return 0
        if where.ndim == 0 or where.shape[where.ndim - 1] != self.weight.job.columns:
            return 0
        if where.strides != NULL and where.strides[where.ndim - 1] != 1:
            return 0  # one part of complex numbers, which may stand for its negative
        for i in range(where.ndim - 1):
            tokens *= where.shape[i]
        return 0 if self.is_watched() else tokens

    cdef bint is_watched(self) except -1:
        """Whether someone looks at what is done; see `kernels_take` in runtime/stored_weight.py."""
        return self.is_tracing() or <int>self.n_modes() or <int>self.forward_ad["_current_level"] >= 0

    cdef int run(self, size_t x, size_t out, int64_t tokens, bint narrow) except -1:
        """Multiply float32 in place, and bfloat16 through copies in float32."""
        cdef const dequantize_job *weight = &self.weight.job
        cdef int64_t n_inputs = tokens * weight.columns if narrow else 0
        cdef int64_t n_outputs = tokens * weight.rows if narrow else 0
        cdef int64_t n_biases = weight.rows if self.has_narrow_bias else 0
        cdef const float *bias = <const float *>self.places[3]
        cdef float *wide = NULL
        if n_inputs + n_biases:
            wide = <float *>malloc(4 * (n_inputs + n_outputs + n_biases))
            if wide == NULL:
                raise MemoryError
        try:
            if n_biases:
                from_bfloat16(<const uint16_t *>self.places[3], wide + n_inputs + n_outputs, n_biases)
                bias = wide + n_inputs + n_outputs
            if narrow:
                from_bfloat16(<const uint16_t *>x, wide, n_inputs)
                self.product(wide, bias, wide + n_inputs, tokens)
                to_bfloat16(wide + n_inputs, <uint16_t *>out, n_outputs)
            else:
                self.product(<const float *>x, bias, <float *>out, tokens)
        finally:
            free(wide)
        return 0

    cdef int product(self, const float *x, const float *bias, float *out, int64_t tokens) except -1:
        cdef int n_threads = self.get_num_threads()
        cdef input_codes inputs = self.form
        if not inputs.bits:
            return _floats(self.isa, &self.weight.job, x, bias, out, tokens, n_threads)
        inputs.x, inputs.tokens = x, tokens
        inputs.scale = inputs.zero = NULL
        return _codes(self.isa, &self.weight.job, &inputs, bias, out, n_threads)


def multiply_ready(dict layer not None, x, bint is_call=False):
    """Return what a linear layer makes of a tensor by the product kept ready for it, or None.

    Parameters
    ----------
    layer : `__dict__` of the module; that of its module `weight` has the `ReadyProduct` or None as "ready_product".
    x : what it is called with, (..., columns).
    is_call : the module is called, which must run its hooks; else its forward is.

    Returns
    -------
    tensor or None
        (..., rows) in the dtype of x. None = there is no product, it does not hold any more, and is let go, there are
        hooks, or x is not a float32 or bfloat16 tensor as it can be read: the layer must go the long way, and have no
        surprise there.

    """
    weight = (<dict>layer["_modules"]).get("weight")
    if weight is None:
        return None
    cdef dict state = weight.__dict__
    kept = state["ready_product"]
    if kept is None:
        return None
    cdef ReadyProduct ready = kept
    if is_call and not ready.is_called_as_it_is(layer):
        return None
    if not ready.holds(layer, state):
        state["ready_product"] = None
        return None
    if type(x) is not ready.tensor:
        return None
    cdef dl_tensor where
    cdef int64_t tokens = ready.tokens_of(x, &where)
    if not tokens:
        return None
    cdef int64_t i
    cdef bint narrow = dl_is_bfloat16(&where)
    cdef list shape = [where.shape[i] for i in range(where.ndim - 1)]
    shape.append(ready.weight.job.rows)
    out = ready.empty(*shape, dtype=ready.bfloat16 if narrow else ready.float32, device=ready.cpu)
    if type(out) is not ready.tensor:
        return None
    ready.run(<size_t>dl_start(&where), out.data_ptr(), tokens, narrow)
    return out
