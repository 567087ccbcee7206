// A second device, in the memory of the CPU. As a GPU does, it refuses tensors of two devices in
// one call, and random numbers from a generator of the CPU's; all else the CPU does for it.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

namespace {
using at::IntArrayRef;
using at::Tensor;

constexpr auto OURS = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
const char* const MIXED = "Expected all tensors to be on the same device: ";

struct Memory final : at::Allocator {
  static void release(void* data) { c10::free_cpu(data); }
  at::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &release, at::Device(OURS, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(OURS, &memory);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<OURS> {
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto grown = memory.allocate(bytes);
    std::memcpy(grown.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
Hooks hooks;

Tensor on_cpu(const Tensor& tensor) {  // the same memory
  const auto options = tensor.options().device(at::kCPU);
  return tensor.is_cpu() ? tensor
                         : at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS,
                                           c10::dtype_or_default(dtype));
}

Tensor write(const Tensor& from, const Tensor& to, bool) {
  if (from.numel()) on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor resize_and_write(const Tensor& from, const Tensor& to) {
  return write(from, to.resize_(from.sizes()), false);
}

Tensor as_strided(const Tensor& x, IntArrayRef size, IntArrayRef stride,
                  std::optional<int64_t> offset) {
  return at::cpu::as_strided(x, size, stride, offset);
}

Tensor reshape_alias(const Tensor& x, IntArrayRef size, IntArrayRef stride) {
  return at::cpu::as_strided(x, size, stride, x.storage_offset());
}

Tensor view(const Tensor& x, IntArrayRef size) { return at::native::view(x, size); }

const Tensor& resize(const Tensor& x, IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (x.sizes() == size) return x;
  auto* own = x.unsafeGetTensorImpl();
  const size_t bytes = (c10::multiply_integers(size) + own->storage_offset()) * x.itemsize();
  if (bytes > own->storage().nbytes()) hooks.resizePrivateUse1Bytes(own->storage(), bytes);
  own->set_sizes_contiguous(size);
  return x;
}

Tensor& set_storage(Tensor& x, at::Storage storage, int64_t offset, IntArrayRef size,
                    IntArrayRef stride) {
  auto* own = x.unsafeGetTensorImpl();
  own->set_storage_keep_dtype(std::move(storage));
  own->set_storage_offset(offset);
  own->set_sizes_and_strides(size, stride);
  return x;
}

Tensor& set_whole_storage(Tensor& x, at::Storage storage) {
  const int64_t length = storage.nbytes() / x.itemsize();
  return set_storage(x, std::move(storage), 0, {length}, {1});
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                   c10::SymIntArrayRef dilation, bool transposed,
                   c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  const bool biased = bias && bias->defined();
  const bool mixed = x.is_cpu() || weight.is_cpu() || (biased && bias->is_cpu());
  TORCH_CHECK(!mixed, MIXED, "convolution");
  const auto held = biased ? std::optional<Tensor>(on_cpu(*bias)) : std::nullopt;
  return at::convolution_symint(on_cpu(x), on_cpu(weight), held, stride, padding, dilation,
                                transposed, output_padding, groups)
      .to(x.device());
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  int here = 0, elsewhere = 0;
  const auto count = [&](const Tensor& x) {
    if (!x.defined()) return;
    here += x.device().type() == OURS;
    elsewhere += x.is_cpu() && x.dim() > 0;  // numbers without axes may be anywhere
  };
  for (const auto& argument : torch::jit::last(stack, op.schema().arguments().size())) {
    if (argument.isTensor()) count(argument.toTensor());
    if (argument.isTensorList())
      for (const Tensor& x : argument.toTensorVector()) count(x);
    if (argument.isGenerator())
      TORCH_CHECK(!argument.toGenerator().device().is_cpu(),
                  "Expected a generator of this device, but found one of the CPU's: ", name);
  }
  const bool indexed = name.find("index") != std::string::npos;  // which may be by the CPU's
  TORCH_CHECK(indexed || !here || !elsewhere, MIXED, name);
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &write);
  library.impl("_copy_from_and_resize", &resize_and_write);
  library.impl("as_strided", &as_strided);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("view", &view);
  library.impl("resize_", &resize);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("convolution_overrideable", &convolution);
  library.impl("_fused_sdp_choice", &plain_attention);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(&hooks); });
}
