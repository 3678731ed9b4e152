package micro

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/godwit-vmm/godwit/internal/testenv"
)

var (
	names64 = strings.Fields("rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15")
	names32 = strings.Fields("eax ecx edx ebx esp ebp esi edi r8d r9d r10d r11d r12d r13d r14d r15d")
	names16 = strings.Fields("ax cx dx bx sp bp si di r8w r9w r10w r11w r12w r13w r14w r15w")
	names8  = strings.Fields("al cl dl bl spl bpl sil dil r8b r9b r10b r11b r12b r13b r14b r15b")
	byWidth = map[Width][]string{Byte: names8, Word: names16, Long: names32, Quad: names64}
	ptr     = map[Width]string{Byte: "BYTE PTR", Word: "WORD PTR", Long: "DWORD PTR", Quad: "QWORD PTR"}
	widths  = []Width{Byte, Word, Long, Quad}
)

// listing is a program together with what a disassembler must say about it.
type listing struct {
	a    Asm
	want []string
}

// add notes that what was assembled since the last call is one instruction.
func (l *listing) add(format string, args ...any) {
	l.want = append(l.want, fmt.Sprintf(format, args...))
}

func memText(w Width, m Mem) string {
	at := names64[m.Base]
	switch {
	case m.Disp < 0:
		at += fmt.Sprintf("-%#x", -int64(m.Disp))
	case m.Disp > 0 || m.Base&7 == RBP:
		at += fmt.Sprintf("+%#x", m.Disp)
	}
	return fmt.Sprintf("%s [%s]", ptr[w], at)
}

// everyInstruction assembles each instruction with the registers, widths and
// displacements that change its encoding.
func everyInstruction() *listing {
	var l listing
	a := &l.a
	var regs []Reg
	for r := RAX; r <= R15; r++ {
		regs = append(regs, r)
	}
	mem := func(base Reg) []Mem {
		return []Mem{{base, 0}, {base, 8}, {base, -128}, {base, 128}, {base, 0x1234567}, {base, -0x7654321}}
	}
	alu := map[ALU]string{Add: "add", Or: "or", And: "and", Sub: "sub", Xor: "xor", Cmp: "cmp"}

	for _, r := range regs {
		l.registerOnly(r)
		for op, name := range alu {
			a.OpImm(op, r, 0x11)
			l.add("%s %s,0x11", name, names64[r])
			a.OpImm(op, r, 0x1122)
			// RAX has a shorter encoding that the assembler does not use.
			l.add("%s %s,0x1122", name, names64[r])
			a.OpMemImm(op, Long, Mem{r, 8}, 0x11)
			l.add("%s %s,0x11", name, memText(Long, Mem{r, 8}))
			a.OpMemImm(op, Quad, Mem{r, 0}, 0x11223344)
			l.add("%s %s,0x11223344", name, memText(Quad, Mem{r, 0}))
		}
		for _, s := range regs {
			l.twoRegisters(r, s, alu)
		}
		for _, m := range mem(r) {
			for _, s := range []Reg{RAX, RBX, RSP, RDI, R8, R15} {
				l.memory(s, m)
			}
		}
	}
	for i, name := range []string{"in al,dx", "in ax,dx", "in eax,dx"} {
		a.In(widths[i])
		l.add("%s", name)
		a.Out(widths[i])
		l.add("out dx,%s", byWidth[widths[i]][RAX])
		a.InImm(widths[i], 0x80)
		l.add("in %s,0x80", byWidth[widths[i]][RAX])
		a.OutImm(widths[i], 0x80)
		l.add("out 0x80,%s", byWidth[widths[i]][RAX])
	}
	for _, f := range []struct {
		emit func()
		want string
	}{
		{func() { a.PushImm(0x123) }, "push 0x123"},
		{a.Ret, "ret"}, {a.Rdtsc, "rdtsc"}, {a.Cpuid, "cpuid"}, {a.Pause, "pause"}, {a.Mfence, "mfence"},
		{a.RepStosq, "rep stos QWORD PTR es:[rdi],rax"},
		{a.RepMovsq, "rep movs QWORD PTR es:[rdi],QWORD PTR ds:[rsi]"},
		{a.Ud2, "ud2"}, {a.Int3, "int3"}, {a.Hlt, "hlt"},
	} {
		f.emit()
		l.add("%s", f.want)
	}
	return &l
}

func (l *listing) registerOnly(r Reg) {
	a, n := &l.a, names64[r]
	a.MovImm(r, 0x7fffffff)
	l.add("mov %s,0x7fffffff", names32[r])
	a.MovImm(r, 0xffffffff)
	l.add("mov %s,0xffffffff", names32[r])
	a.MovImm(r, 1<<64-2)
	l.add("mov %s,0xfffffffffffffffe", n)
	a.MovImm(r, 0x123456789abcdef0)
	l.add("movabs %s,0x123456789abcdef0", n)
	a.TestImm(r, 0x20)
	l.add("test %s,0x20", n)
	a.Shl(r, 13)
	l.add("shl %s,0xd", n)
	a.Shr(r, 63)
	l.add("shr %s,0x3f", n)
	a.ShrCL(r)
	l.add("shr %s,cl", n)
	a.Inc(r)
	l.add("inc %s", n)
	a.Dec(r)
	l.add("dec %s", n)
	a.Push(r)
	l.add("push %s", n)
	a.Pop(r)
	l.add("pop %s", n)
}

func (l *listing) twoRegisters(r, s Reg, alu map[ALU]string) {
	a := &l.a
	a.Mov(r, s)
	l.add("mov %s,%s", names64[r], names64[s])
	a.Test(r, s)
	l.add("test %s,%s", names64[r], names64[s])
	a.Imul(r, s)
	l.add("imul %s,%s", names64[r], names64[s])
	a.Bsr(r, s)
	l.add("bsr %s,%s", names64[r], names64[s])
	for op, name := range alu {
		a.Op(op, r, s)
		l.add("%s %s,%s", name, names64[r], names64[s])
	}
}

func (l *listing) memory(s Reg, m Mem) {
	a := &l.a
	a.Lea(s, m)
	l.add("lea %s,%s", names64[s], strings.TrimPrefix(memText(Quad, m), "QWORD PTR "))
	a.OpMem(Xor, s, m)
	l.add("xor %s,%s", names64[s], memText(Quad, m))
	for _, w := range widths {
		a.Load(w, s, m)
		switch w {
		case Byte, Word:
			l.add("movzx %s,%s", names32[s], memText(w, m))
		default:
			l.add("mov %s,%s", byWidth[w][s], memText(w, m))
		}
		a.Store(w, m, s)
		l.add("mov %s,%s", memText(w, m), byWidth[w][s])
		a.StoreImm(w, m, 0x12)
		l.add("mov %s,0x12", memText(w, m))
		a.Xadd(w, m, s)
		l.add("lock xadd %s,%s", memText(w, m), byWidth[w][s])
		a.Cmpxchg(w, m, s)
		l.add("lock cmpxchg %s,%s", memText(w, m), byWidth[w][s])
	}
}

// objdump returns the instructions of code, one a line, in Intel syntax.
func objdump(t *testing.T, code []byte) []string {
	t.Helper()
	path, err := exec.LookPath("objdump")
	if err != nil {
		testenv.Lacks(t, "objdump (package binutils) is not installed: encodings are not checked")
	}
	file := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(file, code, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--insn-width=15", file).CombinedOutput()
	if err != nil {
		t.Fatalf("objdump: %v\n%s", err, out)
	}
	var insns []string
	space := regexp.MustCompile(`\s+`)
	for line := range strings.Lines(string(out)) {
		// "   0:\t48 89 c0 \tmov    rax,rax"
		if f := strings.Split(line, "\t"); len(f) == 3 {
			insns = append(insns, strings.TrimSpace(space.ReplaceAllString(f[2], " ")))
		}
	}
	return insns
}

func TestEncodings(t *testing.T) {
	l := everyInstruction()
	code, err := l.a.Assemble()
	if err != nil {
		t.Fatal(err)
	}
	got := objdump(t, code)
	bad := 0
	for i := range min(len(got), len(l.want)) {
		if got[i] != l.want[i] {
			t.Errorf("instruction %d: assembled %q, want %q", i, got[i], l.want[i])
			if bad++; bad == 10 {
				t.FailNow()
			}
		}
	}
	if len(got) != len(l.want) {
		t.Errorf("%d instructions, want %d", len(got), len(l.want))
	}
	t.Logf("%d instructions agree", len(got))
}

func TestJumps(t *testing.T) {
	var a Asm
	forward := a.NewLabel()
	back := a.Here()        // 0
	a.Jmp(forward)          // 0: 5 bytes
	a.Jcc(Below, back)      // 5: 6 bytes
	a.Call(back)            // 11: 5 bytes
	a.LeaLabel(R9, back)    // 16: 7 bytes
	a.Bind(forward)         // 23
	a.Jcc(Greater, forward) // 23: 6 bytes
	code, err := a.Assemble()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"jmp 0x17", "jb 0x0", "call 0x0", "lea r9,[rip+0xffffffffffffffe9] # 0x0", "jg 0x17"}
	got := objdump(t, code)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestAssemblerMistakes(t *testing.T) {
	for _, test := range []struct {
		name  string
		write func(a *Asm)
		want  string
	}{
		{"unbound label", func(a *Asm) { a.Jmp(a.NewLabel()) }, "never bound"},
		{"label bound twice", func(a *Asm) { a.Bind(a.Here()) }, "bound twice"},
		{"foreign label", func(a *Asm) { a.Jmp(7) }, "not made by this assembler"},
		{"negative label", func(a *Asm) { a.Bind(-1) }, "not made by this assembler"},
		{"odd width", func(a *Asm) { a.Load(3, RAX, Mem{}) }, "no operand of 3 bytes"},
		{"quad port", func(a *Asm) { a.Out(Quad) }, "port I/O of 8 bytes"},
		{"no such register", func(a *Asm) { a.Mov(16, RAX) }, "no register"},
		{"shift too far", func(a *Asm) { a.Shl(RAX, 64) }, "shift by 64"},
		{"byte arithmetic", func(a *Asm) { a.OpMemImm(Add, Byte, Mem{}, 1) }, "memory arithmetic"},
		{"first mistake wins", func(a *Asm) { a.Out(Quad); a.Shl(RAX, 64) }, "port I/O"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a Asm
			test.write(&a)
			if _, err := a.Assemble(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %q", err, test.want)
			}
		})
	}
}
