/* gemmd-bench sharing, alone. */
int bench_sharing(int argc, char **argv);

int main(int argc, char **argv)
{
    return bench_sharing(argc, argv);
}
