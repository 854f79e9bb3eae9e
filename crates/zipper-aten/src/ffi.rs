//! The calls into the shim.

#![expect(unsafe_code, reason = "calls the C interface of the shim")]

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use tch::{TchError, Tensor};

use crate::fused::{DropoutHashes, LowRank};
use crate::{AdamWParam, AdamWSettings};

unsafe extern "C" {
    fn zipper_aten_string_free(string: *mut c_char);
    fn zipper_aten_mul(tensors: *const *mut c_void, count: usize, factor: f64) -> *mut c_char;
    fn zipper_aten_adamw(
        params: *const *mut c_void,
        grads: *const *mut c_void,
        exp_avgs: *const *mut c_void,
        exp_avg_sqs: *const *mut c_void,
        steps: *const *mut c_void,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn zipper_aten_rms_norm(
        x: *mut c_void,
        weight: *mut c_void,
        eps: f64,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn zipper_aten_rotate(
        x: *mut c_void,
        cos: *mut c_void,
        sin: *mut c_void,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn zipper_aten_swiglu(gate: *mut c_void, up: *mut c_void, result: *mut *mut c_void) -> *mut c_char;
    fn zipper_aten_frozen_linear(
        x: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn zipper_aten_dropped_product(
        x: *mut c_void,
        a: *mut c_void,
        of_tokens: *mut c_void,
        of_features: *mut c_void,
        multiplier: i64,
        threshold: i64,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn zipper_aten_adapted_linear(
        x: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        a: *mut c_void,
        b: *mut c_void,
        scale: f64,
        of_tokens: *mut c_void,
        of_features: *mut c_void,
        multiplier: i64,
        threshold: i64,
        result: *mut *mut c_void,
    ) -> *mut c_char;
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TchError> {
    // SAFETY: the tensors live during the call, and what comes back is a tensor of its own.
    given(|result| unsafe { zipper_aten_rms_norm(pointer(x), pointer(weight), eps, result) })
}

pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: as above.
    given(|result| unsafe { zipper_aten_rotate(pointer(x), pointer(cos), pointer(sin), result) })
}

pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor, TchError> {
    // SAFETY: as above.
    given(|result| unsafe { zipper_aten_swiglu(pointer(gate), pointer(up), result) })
}

pub(crate) fn frozen_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let bias = bias.map_or(ptr::null_mut(), pointer);
    // SAFETY: as above; the bias may be null.
    given(|result| unsafe { zipper_aten_frozen_linear(pointer(x), pointer(weight), bias, result) })
}

pub(crate) fn dropped_product(x: &Tensor, a: &Tensor, hashes: &DropoutHashes) -> Result<Tensor, TchError> {
    // SAFETY: as above.
    given(|result| unsafe {
        zipper_aten_dropped_product(
            pointer(x),
            pointer(a),
            pointer(&hashes.of_tokens),
            pointer(&hashes.of_features),
            hashes.multiplier,
            hashes.threshold,
            result,
        )
    })
}

pub(crate) fn adapted_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    lora: &LowRank<'_>,
) -> Result<Tensor, TchError> {
    let hashes = lora.dropout;
    // SAFETY: as above; the bias and the hashes may be null.
    given(|result| unsafe {
        zipper_aten_adapted_linear(
            pointer(x),
            pointer(weight),
            bias.map_or(ptr::null_mut(), pointer),
            pointer(lora.a),
            pointer(lora.b),
            lora.scale,
            hashes.map_or(ptr::null_mut(), |hashes| pointer(&hashes.of_tokens)),
            hashes.map_or(ptr::null_mut(), |hashes| pointer(&hashes.of_features)),
            hashes.map_or(0, |hashes| hashes.multiplier),
            hashes.map_or(0, |hashes| hashes.threshold),
            result,
        )
    })
}

pub(crate) fn mul(tensors: &[Tensor], factor: f64) -> Result<(), TchError> {
    let tensors: Vec<*mut c_void> = tensors.iter().map(pointer).collect();
    // SAFETY: the list and its tensors live during the call, which changes nothing but their elements.
    checked(unsafe { zipper_aten_mul(tensors.as_ptr(), tensors.len(), factor) })
}

pub(crate) fn adamw(params: &[AdamWParam], settings: AdamWSettings) -> Result<(), TchError> {
    let list = |of: fn(&AdamWParam) -> &Tensor| -> Vec<*mut c_void> {
        params.iter().map(|param| pointer(of(param))).collect()
    };
    let values = list(|param| &param.value);
    let grads = list(|param| &param.grad);
    let exp_avgs = list(|param| &param.exp_avg);
    let exp_avg_sqs = list(|param| &param.exp_avg_sq);
    let steps = list(|param| &param.step);
    let [beta1, beta2] = settings.betas;
    // SAFETY: the lists are of `params.len()` tensors each, and live during the call, which changes nothing but elements.
    checked(unsafe {
        zipper_aten_adamw(
            values.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            steps.as_ptr(),
            params.len(),
            settings.lr,
            beta1,
            beta2,
            settings.weight_decay,
            settings.eps,
        )
    })
}

/// The tensor that `make` leaves behind the pointer that it is given.
fn given(make: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut result = ptr::null_mut();
    checked(make(&raw mut result))?;
    // SAFETY: without a failure it points to a tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(result.cast()) })
}

fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn checked(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: what is not null is a NUL-terminated string that the shim made for us; it is freed once, after copying.
    let copied = unsafe {
        let copied = CStr::from_ptr(message).to_string_lossy().into_owned();
        zipper_aten_string_free(message);
        copied
    };
    Err(TchError::Torch(copied))
}
