#include "scratch.h"

#include <new>

namespace lebm {

Scratch::Scratch(size_t bytes) : memory_(::operator new(bytes ? bytes : 1, std::align_val_t(64))) {}

Scratch::~Scratch() { ::operator delete(memory_, std::align_val_t(64)); }

}  // namespace lebm
