# A program that makes ppoll(2) with a known value in every register, over and over, and checks afterwards that each of them is as it was:
# general registers, flags, red zone, control words, vector registers (SSE, AVX or AVX-512, as the processor has), alternate signal stack.
# `register-check.ts` has its machine code, made with
#   gcc -nostdlib -c register-check.s && ld -Ttext=0x401000 register-check.o && objcopy -O binary -j .text a.out code && gzip -9n code
# data layout offsets from `data` (page at 0x402000)
        .set D, 0x402000
        .set counter, D+0        # loops
        .set failure, D+8        # what was found changed
        .set interrupted, D+16   # -EINTR seen
        .set handled, D+24       # signals handled
        .set ts, D+32
        .set vector, D+48        # 0 sse, 1 avx, 2 avx512
        .set mask, D+56
        .set action, D+64        # 32 bytes
        .set stack, D+96         # stack_t 24
        .set oldstack, D+128
        .set flags, D+160
        .set control, D+168      # mxcsr, x87 cw
        .set general, D+192      # 16*8 found
        .set wanted, D+320       # 16*8 wanted
        .set redfound, D+448     # 128
        .set pattern, D+1024     # 1024: 16*64
        .set vfound, D+2048      # 1024
        .set masks, D+3072       # 8*8 opmask
        .globl _start
_start:
        # patterns: byte i of the page area = i*7+13
        mov     $pattern, %edi
        xor     %ecx, %ecx
1:      imul    $7, %ecx, %eax
        xor     %ch, %al
        add     $13, %eax
        mov     %al, (%rdi,%rcx)
        inc     %ecx
        cmp     $1024, %ecx
        jne     1b
        # which vector registers
        xor     %r12d, %r12d
        mov     $1, %eax
        xor     %ecx, %ecx
        cpuid
        bt      $27, %ecx
        jnc     2f
        bt      $28, %ecx
        jnc     2f
        xor     %ecx, %ecx
        xgetbv
        mov     %eax, %r13d
        and     $6, %eax
        cmp     $6, %eax
        jne     2f
        inc     %r12d
        mov     $7, %eax
        xor     %ecx, %ecx
        cpuid
        bt      $16, %ebx
        jnc     2f
        and     $0xe0, %r13d
        cmp     $0xe0, %r13d
        jne     2f
        inc     %r12d
2:      mov     %r12, vector
        # signal mask: USR2 and HUP
        movq    $0x801, mask
        mov     $14, %eax
        mov     $2, %edi
        mov     $mask, %esi
        xor     %edx, %edx
        mov     $8, %r10d
        syscall
        # SIGUSR1 is counted
        movq    $handler, action
        movq    $0x04000000, action+8
        movq    $restore, action+16
        mov     $13, %eax
        mov     $10, %edi
        mov     $action, %esi
        xor     %edx, %edx
        mov     $8, %r10d
        syscall
        # an alternate signal stack
        movq    $D+0x1000, stack
        movq    $0, stack+8
        movq    $0x2000, stack+16
        mov     $131, %eax
        mov     $stack, %edi
        xor     %esi, %esi
        syscall
        # control words other than those after a reset
        movl    $0x7f80, control
        ldmxcsr control
        movw    $0x027f, control+4
        fldcw   control+4
        # registers: pattern, then the arguments of ppoll
        mov     $pattern+32, %esi
        mov     $wanted, %edi
        mov     $16, %ecx
        rep movsq
        movq    $0, wanted+8*0   # rdi
        movq    $0, wanted+8*1   # rsi
        movq    $ts, wanted+8*2  # rdx
        movq    $0, wanted+8*3   # r10
        movq    $8, wanted+8*4   # r8
        lea     -512(%rsp), %rsp
        mov     %rsp, wanted+8*13
loop:
        movq    $0, ts
        movq    $3000000, ts+8
        # red zone
        mov     $pattern+512, %esi
        lea     -128(%rsp), %rdi
        mov     $16, %ecx
        rep movsq
        cmpq    $1, vector
        ja      3f
        je      4f
        .altmacro
        .macro  loadsse n
        movups  pattern+64*\n, %xmm\n
        .endm
        .macro  loadavx n
        vmovups pattern+64*\n, %ymm\n
        .endm
        .macro  loadzmm n, m
        vmovups pattern+64*\n, %zmm\m
        .endm
        .macro  storesse n
        movups  %xmm\n, vfound+64*\n
        .endm
        .macro  storeavx n
        vmovups %ymm\n, vfound+64*\n
        .endm
        .macro  storezmm n, m
        vmovups %zmm\m, vfound+64*\n
        .endm
        .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        loadsse \n
        .endr
        jmp     5f
4:      .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        loadavx \n
        .endr
        jmp     5f
3:      loadzmm 0,0
        loadzmm 1,1
        loadzmm 2,2
        loadzmm 3,3
        loadzmm 4,4
        loadzmm 5,5
        loadzmm 6,6
        loadzmm 7,7
        loadzmm 8,24
        loadzmm 9,25
        loadzmm 10,26
        loadzmm 11,27
        loadzmm 12,28
        loadzmm 13,29
        loadzmm 14,30
        loadzmm 15,31
        kmovq   pattern+8, %k1
        kmovq   pattern+16, %k7
5:      mov     wanted+8*5, %r9
        mov     wanted+8*6, %rbx
        mov     wanted+8*7, %rbp
        mov     wanted+8*8, %r12
        mov     wanted+8*9, %r13
        mov     wanted+8*10, %r14
        mov     wanted+8*11, %r15
        mov     wanted+8*0, %rdi
        mov     wanted+8*1, %rsi
        mov     wanted+8*2, %rdx
        mov     wanted+8*3, %r10
        mov     wanted+8*4, %r8
        mov     $271, %eax
        std
        stc
        syscall
        mov     %rdi, general+8*0
        mov     %rsi, general+8*1
        mov     %rdx, general+8*2
        mov     %r10, general+8*3
        mov     %r8, general+8*4
        mov     %r9, general+8*5
        mov     %rbx, general+8*6
        mov     %rbp, general+8*7
        mov     %r12, general+8*8
        mov     %r13, general+8*9
        mov     %r14, general+8*10
        mov     %r15, general+8*11
        mov     %rsp, general+8*13
        mov     %rax, %r15
        lea     -256(%rsp), %rsp
        pushfq
        pop     flags
        lea     256(%rsp), %rsp
        cld
        cmpq    $1, vector
        ja      3f
        je      4f
        .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        storesse \n
        .endr
        jmp     5f
4:      .irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
        storeavx \n
        .endr
        jmp     5f
3:      storezmm 0,0
        storezmm 1,1
        storezmm 2,2
        storezmm 3,3
        storezmm 4,4
        storezmm 5,5
        storezmm 6,6
        storezmm 7,7
        storezmm 8,24
        storezmm 9,25
        storezmm 10,26
        storezmm 11,27
        storezmm 12,28
        storezmm 13,29
        storezmm 14,30
        storezmm 15,31
        kmovq   %k1, masks
        kmovq   %k7, masks+8
5:      # the result: 0, or -EINTR
        mov     $1, %r14d
        test    %r15, %r15
        je      6f
        incq    interrupted
        cmp     $-4, %r15
        jne     failed
6:      inc     %r14d           # 2: general registers
        mov     wanted+8*12, %rax
        mov     %rax, general+8*12
        mov     wanted+8*14, %rax
        mov     %rax, general+8*14
        mov     wanted+8*15, %rax
        mov     %rax, general+8*15
        mov     $general, %esi
        mov     $wanted, %edi
        mov     $16, %ecx
        repe cmpsq
        jne     failed
        inc     %r14d           # 3: red zone
        lea     -128(%rsp), %rsi
        mov     $pattern+512, %edi
        mov     $16, %ecx
        repe cmpsq
        jne     failed
        inc     %r14d           # 4: flags
        mov     flags, %rax
        and     $0x401, %eax
        cmp     $0x401, %eax
        jne     failed
        inc     %r14d           # 5: control words
        stmxcsr control+8
        fnstcw  control+12
        mov     control+8, %eax
        cmp     control, %eax
        jne     failed
        mov     control+12, %ax
        cmp     control+4, %ax
        jne     failed
        inc     %r14d           # 6: vector registers
        mov     vector, %ecx
        mov     $2, %edx
        shl     %cl, %edx       # quadwords of each
        mov     $pattern, %r8d
        mov     $vfound, %r9d
        mov     $16, %r10d
7:      mov     %r8, %rsi
        mov     %r9, %rdi
        mov     %edx, %ecx
        repe cmpsq
        jne     failed
        add     $64, %r8
        add     $64, %r9
        dec     %r10d
        jne     7b
        cmpq    $2, vector
        jne     8f
        mov     masks, %rax
        cmp     pattern+8, %rax
        jne     failed
        mov     masks+8, %rax
        cmp     pattern+16, %rax
        jne     failed
8:      inc     %r14d           # 7: alternate stack
        mov     $131, %eax
        xor     %edi, %edi
        mov     $oldstack, %esi
        syscall
        mov     oldstack, %rax
        cmp     stack, %rax
        jne     failed
        mov     oldstack+16, %rax
        cmp     stack+16, %rax
        jne     failed
        incq    counter
        jmp     loop
failed:
        mov     %r14, failure
9:      mov     $34, %eax
        syscall
        jmp     9b
handler:
        incq    handled
        ret
restore:
        mov     $15, %rax
        syscall
getpid:
        mov     $39, %eax
        syscall
        ret
