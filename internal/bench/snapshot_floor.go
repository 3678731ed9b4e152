package bench

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

//go:embed floor/restore.c
var restoreSource []byte

// buildRestoreFloor compiles the C program that restores a guest.
func buildRestoreFloor(ctx context.Context, e *Env) (string, error) {
	return compile(ctx, e, "restore", restoreSource)
}

// floorCall is struct call of the program.
type floorCall struct {
	Request uint32
	Size    uint32
	OfVM    uint32
	_       uint32
}

// writeFloorState puts what the program needs of a snapshot into a file beside it:
// all of the processor's state, as godwit sets it, in the order in which it does.
func writeFloorState(dir string) (path string, err error) {
	s, err := snapshot.Open(dir)
	if err != nil {
		return "", err
	}
	defer s.Close()
	var state machine.State
	text, ok := s.Section("machine")
	if !ok {
		return "", fmt.Errorf("snapshot %s has no section of the machine", dir)
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return "", fmt.Errorf("snapshot %s: %w", dir, err)
	}
	data, err := floorState(s, &state)
	if err != nil {
		return "", fmt.Errorf("state for the C floor: %w", err)
	}
	path = filepath.Clean(dir) + ".floor"
	return path, os.WriteFile(path, data, 0o600)
}

func floorState(s *snapshot.Snapshot, state *machine.State) ([]byte, error) {
	if len(state.CPUs) != 1 {
		return nil, fmt.Errorf("%d CPUs: want 1", len(state.CPUs))
	}
	cpu := state.CPUs[0]
	calls := []struct {
		request kvm.Request
		ofVM    uint32
		parts   []any
	}{
		{kvm.KVM_SET_CPUID2, 0, []any{uint32(len(cpu.CPUID)), uint32(0), cpu.CPUID}},
		{kvm.KVM_SET_MP_STATE, 0, []any{cpu.MPState}},
		{kvm.KVM_SET_REGS, 0, []any{cpu.Regs}},
		{kvm.KVM_SET_SREGS, 0, []any{cpu.Sregs}},
		{kvm.KVM_SET_XSAVE, 0, []any{cpu.XSAVE}},
		{kvm.KVM_SET_XCRS, 0, []any{cpu.XCRS}},
		{kvm.KVM_SET_DEBUGREGS, 0, []any{cpu.DebugRegs}},
		{kvm.KVM_SET_LAPIC, 0, []any{cpu.LAPIC}},
		{kvm.KVM_SET_MSRS, 0, []any{uint32(len(cpu.MSRs)), uint32(0), cpu.MSRs}},
		{kvm.KVM_SET_VCPU_EVENTS, 0, []any{cpu.Events}},
		{kvm.KVM_SET_CLOCK, 1, []any{kvm.ClockData{Clock: state.Clock.Clock}}},
	}
	ranges := s.Ranges()
	parts := []any{uint32(len(ranges)), uint32(len(calls))}
	for _, r := range ranges {
		parts = append(parts, uint64(r.Start), r.Size)
	}
	for _, c := range calls {
		argument, err := littleEndian(c.parts...)
		if err != nil {
			return nil, fmt.Errorf("%v: %w", c.request, err)
		}
		padding := make([]byte, -len(argument)&7)
		parts = append(parts, floorCall{Request: uint32(c.request), Size: uint32(len(argument)), OfVM: c.ofVM}, argument, padding)
	}
	return littleEndian(parts...)
}

func littleEndian(parts ...any) ([]byte, error) {
	var b bytes.Buffer
	for _, p := range parts {
		if err := binary.Write(&b, binary.LittleEndian, p); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
