// bcryptprimitives.dll, which Wine 8 lacks, with the one function that wheels built from Rust use.
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) { return RtlGenRandom(data, (ULONG)size); }
